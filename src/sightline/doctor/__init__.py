"""The doctor: everything about a recipe that can be known before it trains, in one readable verdict.

`run.examine` does it. Nothing is imported here, so that the processes that decode images start quickly.
"""
