"""The Hydra group `recipe`, as package data; hydra_plugins/samr1 puts it on Hydra's search path."""
