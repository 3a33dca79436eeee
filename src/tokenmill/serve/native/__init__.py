"""LMDeploy's own endpoints, one file each: generation without a chat shape, tokens, scores, pooling."""
