"""What comes back from models and tools, on its way into a run: judged, and made to fit."""
