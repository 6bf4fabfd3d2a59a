"""Fuzzing of everything that reads what a vendor or a caller wrote: answers, streams, encodings, requests.

python -m tests.fuzz.run --inputs 1000000 --seed 1
"""
