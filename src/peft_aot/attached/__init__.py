"""Adapters that stand beside the modules they adapt, not around them: what BitFit, HiWi, PaFi and Houlsby share."""
