"""Generation by filling in hidden positions: what the families of masked networks share.

``batch`` what is read, ``plan``, ``rules`` and ``blocks`` when positions are revealed, ``denoiser`` the network behind
them, ``fill`` and ``remask`` the loops, ``answers`` what is handed back, ``likelihood`` what a text costs. Functions,
no base class.
"""
