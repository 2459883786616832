"""The sealed channel: verify, then talk. Pure messages inside, one transport and one gateway at the edges."""
