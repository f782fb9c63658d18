"""xlm: language models that need not generate left to right."""
