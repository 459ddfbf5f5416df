"""What runs wait with: questions answered, runs held, signalled and told."""
