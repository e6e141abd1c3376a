"""The name of the teacher of a run that has one. It stands alone, so that what needs torch alone can be imported so."""

ONLY = ""
