"""Training of the nano family: unit targets, encoder, vocoder and the judge that scores them."""
