"""The verbs of the command line, one short function each, by what somebody wants to do."""
