"""`compact-edge release`: many models, ratios, targets and types, made as cells and gathered into one folder."""
