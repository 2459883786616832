"""What runs on the user's own machine: the page of owners and auditors. A page that a broker's host served could say
anything; this one is served by the user's own command line, and shows what was verified there.
"""
