"""The paper's experiments, one file each: model, loss, train()."""
