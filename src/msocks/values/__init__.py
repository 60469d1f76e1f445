"""Plain values that every layer uses: endpoints, identifiers, links, access links. Standard library only."""
