"""Appraisal: (claims, policy) -> attestation result. Only a result's keys authorise anything."""
