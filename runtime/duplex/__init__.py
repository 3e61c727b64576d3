"""Full duplex: sound is heard, understood, answered and interrupted while it happens."""
