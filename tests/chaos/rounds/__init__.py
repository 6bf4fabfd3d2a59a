"""Rounds of bursts and faults on real processes and engines, judged by the independent model.

`arena` is what runs; `traffic` and `direct` are what is asked of it, `faults` what befalls it; `books`, `judging` and
`rest` are the judge; `run` plays, `report` tells.
"""
