"""A family for the tests of the core: a bigram network, whose whole run takes a second."""
