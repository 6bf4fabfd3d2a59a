"""Rounds of bursts and faults on real processes and engines, judged by the independent model."""
