"""What the tests of every family share: toy models with known laws, enumeration, contracts, tiny inputs."""
