package transfer

const nonBlocking = 0
