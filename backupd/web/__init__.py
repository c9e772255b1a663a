"""What people look at: the status page's pages, and the charts on them."""
