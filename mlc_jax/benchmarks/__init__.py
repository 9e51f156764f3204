"""Published data: digits, CIFAR, texts, Clothing1M; splits, and noise on their labels."""
