"""Text to batches: tokenizers, sources, packing, the global order, dataset managers and the data module.

Nothing is imported here: collators need ``xlm.data.padding`` alone, which costs no more than torch.
"""
