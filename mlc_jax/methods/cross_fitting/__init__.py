"""The parts of `methods.cross_fit`: its classifiers, and its label model."""
