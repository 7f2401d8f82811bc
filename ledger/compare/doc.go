// Package compare holds the ledger against its peers, in a module of its own so
// that their dependencies stay out of Writ's. Its tests have Tessera's fsck
// judge the tree that the ledger exports; its benchmark runs both beside one
// another.
package compare
