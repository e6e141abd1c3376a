"""`trd review`: a person judges the responses of a corpus, one at a time, in a terminal or through a pipe."""
