"""Run folders as one self-contained HTML page.

run_folder   what a run folder holds
looks        what its model makes of a few pictures, as files; `looking` makes them
series       the runs of a page, and how they are told apart
scores, curves, seen, answers, differences      the parts of the page
page         all of it
"""
