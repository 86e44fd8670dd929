"""How far an artifact is from its source: KL divergence, top-1 agreement, perplexity."""
