"""Building blocks with one right answer: rotary positions, attention, transformer blocks, the chunked cross-entropy."""
