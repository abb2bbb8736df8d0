//! Every file of the corpus goes through its target, so that neither rots.

use std::fs;
use std::path::Path;

use exitscope_fuzz::TARGETS;

#[test]
fn the_corpus_passes() {
    for (name, target) in TARGETS {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let files = fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path());
        let count = files
            .map(|file| {
                println!("{}", file.display());
                target(&fs::read(&file).unwrap());
            })
            .count();
        assert!(count > 0, "{name}: the corpus is empty");
    }
}
