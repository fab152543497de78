"""The bundles of many hosts in one store: a catalogue of their manifests, questions to it, and work on all of them."""
