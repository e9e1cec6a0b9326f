"""The static audit: no data, no weights, no perturbation; the same rules and the same report as a watch."""
