//! Every promise of the product, against the real programs.
