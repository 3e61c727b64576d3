"""`spiritrt bench duplex`: what people would notice of a runtime that talks with them, in figures."""
