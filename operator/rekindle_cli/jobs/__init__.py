"""Jobs on any cluster: asked, followed, explained, started again."""
