"""The study: what is searched, trial by trial, and how it survives. The only importer of Optuna."""
