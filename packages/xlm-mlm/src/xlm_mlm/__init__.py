"""Masked language models (MLM): every hidden token is predicted from all visible ones; see README.md."""
