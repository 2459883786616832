"""The key broker: attested workloads ask, the owner's rule answers, an audit line is written first.

Pure: ``protocol`` ``release`` ``jwe`` ``token``; state: ``store`` ``keystores`` ``audit`` ``session``;
``app`` serves, ``client`` asks (docs/spec/kbs.md).
"""
