"""Insertion language models (ILM; Patel et al., 2025): a text grows by tokens inserted in any order."""
