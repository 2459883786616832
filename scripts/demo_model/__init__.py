"""Parts of the demo-model trainer: corpus cleaning, sampling, the network, training, export and the card."""
