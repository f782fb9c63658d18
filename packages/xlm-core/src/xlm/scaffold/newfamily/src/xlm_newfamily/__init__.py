"""A masked language model: hidden tokens are predicted from visible ones, in any order; see README.md."""
