"""xlm_mdlm: see README.md."""
