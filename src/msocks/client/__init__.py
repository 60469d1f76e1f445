"""The mobile node: sessions whose legs move from link to link. The public names are those of `msocks` itself."""
