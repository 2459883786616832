"""Endorsements: what vendors sign. Roots as data files, collateral parsed strictly."""
