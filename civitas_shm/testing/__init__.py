"""For tests of your own agents. So far: `models.FakeModelServer`, a model service that says what a test wants."""
