"""Work that goes on after its answer: batches and background responses, from their submission to their settlement.

`submit` and `lines` bound a batch by its input file, `keeper` keeps an accepted job and ends it, `watch` reads the
answers that tell how it stands, `poll` asks when no client does. `states` knows the three kinds of job, `access` reads
from their vendors, `tally` adds up what they used, `settle` records it.
"""
