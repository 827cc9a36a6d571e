"""What a model is and needs: from its module, from its file, or from its size alone. Torch is imported lazily."""
