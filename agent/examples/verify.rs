//! Scratch.
use telltale::probes::*;
fn main() {
    for tap in [load::TapVariant::Auto, load::TapVariant::Walk] {
    let mut l = match load::load(&load::LoadOptions{capture_bytes:4096,rings:1,ring_bytes:65536,max_connections:1024,tap,verbose:false}) { Ok(l)=>l, Err(e)=>{ println!("LOAD {e}"); let mut s: Option<&dyn std::error::Error> = Some(&e); while let Some(x)=s { println!("  {x}"); s=x.source(); } std::process::exit(1);} };
    println!("loaded marks={}", l.use_marks);
    for r in attach::verify(&mut l) { match r.result { Ok(n)=>println!("{} {:?}", r.probe.tracepoint, n), Err(e)=>{ let s=format!("{e:?}").replace("\\n","\n"); let n=s.len(); println!("{} ERR ...{}", r.probe.tracepoint, &s[n.saturating_sub(1500)..]) } } }
    match sampler::Sampler::new(&mut l.ebpf) { Ok(_)=>println!("sampler ok"), Err(e)=>println!("sampler {e} {:?}", std::error::Error::source(&e).map(|s| { let s=format!("{s:?}").replace("\\n","\n"); let n=s.len(); s[n.saturating_sub(1500)..].to_string() })) }
    }
}
