"""What is in the object store, who refers to it, and how what nobody refers to goes."""
