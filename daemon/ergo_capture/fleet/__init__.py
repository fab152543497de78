"""The bundles of many hosts in one store: index and query their manifests, verify, replay and export the bundles."""
